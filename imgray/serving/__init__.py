"""How imgray answers over HTTP: Ray Serve deployments, the HTTP application, the web page."""
