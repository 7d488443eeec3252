"""A page in the browser, on this machine: tabs, each a shell over one command and what that is a shell over."""
