"""The name store: names, accounts, containers, keys and uploads in SQL. Knows neither HTTP nor datanodes."""
