"""Studies of the method, for who works on it: what each choice is worth. They run from a clone, on the package."""
