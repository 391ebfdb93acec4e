"""Graders compared with people: the choice on validation queries and the report on test queries."""
