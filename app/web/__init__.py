"""Pages for people: the front page, and the two readers of the OpenAPI document."""
