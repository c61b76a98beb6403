"""Parts that two or more plug-ins share."""
