"""Pure protocol logic: bytes and time in, commands out. No socket, clock, log or random number here."""
