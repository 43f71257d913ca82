"""What several tests use."""

# Not a real key: every test talks to a collector on loopback.
TEST_WRITE_KEY = 'test-write-key'
