"""X.509 profiles, PKCS#12 keychains, OCSP, certificate status and its permitted transitions. Pure."""
