"""The section `report` of params.yaml, with its defaults."""

from typing import Literal

from pydantic import Field

from src.core.params import Section


class Report(Section):
    """What a report shows of the data."""

    pictures: Literal["all", "charts", "none"] = Field(
        default="all", description="charts: no picture shows an example of the data; none: no picture at all"
    )
