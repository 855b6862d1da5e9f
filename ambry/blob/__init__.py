"""What a blob is, whoever stores or serves it: id, state, properties, checksums, manifest. Bytes and values only."""
