"""A model made ready for export: a module of one image, in operators that every runtime has."""
