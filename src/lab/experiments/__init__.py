"""Questions put to a recipe before or beside a training: search, rates, checks, studies. Each command writes a page."""
