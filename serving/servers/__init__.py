"""TorchServe and FastAPI around the predictor."""
