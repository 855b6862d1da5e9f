"""Who may do what, as values and pure functions: accounts, containers and their policy, access keys, signatures."""
