"""What is exported: a model as a module of one image, in operators that every runtime has."""
