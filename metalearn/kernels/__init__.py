"""Operations whose first and second derivatives are written out."""
