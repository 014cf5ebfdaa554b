"""The sections `report` and `energy` of params.yaml, with their defaults."""

from typing import Literal

from pydantic import Field

from src.core.params import Section


class Report(Section):
    """What a report shows of the data."""

    pictures: Literal["all", "charts", "none"] = Field(
        default="all", description="charts: no picture shows an example of the data; none: no picture at all"
    )


class Energy(Section):
    """What energy costs."""

    price: float | None = Field(default=None, ge=0, description="of a kWh, in your money; null shows kWh alone")
