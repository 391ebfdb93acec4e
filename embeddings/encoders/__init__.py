"""The DashCLIP encoders: their modules, their configuration and published weights."""
