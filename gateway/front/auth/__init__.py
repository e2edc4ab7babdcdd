"""Authentication of clients: users, passwords, ident, and a guard against guessing."""
