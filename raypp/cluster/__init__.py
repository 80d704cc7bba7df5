"""All that knows Ray: the session, Ray Data, Ray Train and Ray Tune."""
