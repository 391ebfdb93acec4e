"""TorchServe: started, watched and stopped, and the handler in its workers."""
