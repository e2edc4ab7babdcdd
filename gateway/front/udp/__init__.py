"""UDP ASSOCIATE (RFC 1928 section 7): associations, their sockets and routes."""
