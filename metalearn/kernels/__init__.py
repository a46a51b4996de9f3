"""Operations with both derivatives written out."""
