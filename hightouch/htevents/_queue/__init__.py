"""The queue of a client: where events wait, and the books on what becomes of them."""
