"""What surrounds a call: scopes, deferred blocks, the current span."""
