"""What processes say to each other: messages, their bytes, and the state of a connection. No sockets here."""
