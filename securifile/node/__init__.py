"""A storage node: keeps blobs and an index, serves people and peers."""
