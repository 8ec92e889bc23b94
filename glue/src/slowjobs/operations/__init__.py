"""What a person does by the command line, one operation each; cli says how it is asked for and shown."""
