"""calotype inside other libraries, one module each; each needs the library it is named after."""
