"""What CLEAR costs and what attention looks at: figures and pictures. Never imports `host`."""
