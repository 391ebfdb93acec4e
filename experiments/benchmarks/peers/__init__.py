"""Other trainers of the same model. Each module runs under its own peer's interpreter, never under ours."""
