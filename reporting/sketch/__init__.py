"""What a protocol does, as a picture and as a page of the docs."""
