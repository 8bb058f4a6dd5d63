"""What is kept from one start to the next, by the content of all that it is made of."""
