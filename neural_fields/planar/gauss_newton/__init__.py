"""The fit of models whose parts are all tables: equations that frames give, and passes that solve them."""
