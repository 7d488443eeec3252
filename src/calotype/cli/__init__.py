"""The command line: shells over public functions, one file a command. Nothing heavy is imported before it is needed."""
