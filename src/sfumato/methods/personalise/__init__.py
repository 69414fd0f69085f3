"""Methods that teach a frozen model a thing, a relation or a view from a handful of pictures."""
