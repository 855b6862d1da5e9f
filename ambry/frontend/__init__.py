"""HTTP in front, datanodes behind. Stateless: any frontend can serve any request."""
