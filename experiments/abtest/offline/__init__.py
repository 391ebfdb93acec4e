"""Offline against online: what logged decisions say of policies that did not make them."""
