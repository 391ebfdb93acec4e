"""The request, its reply, and how both travel."""
