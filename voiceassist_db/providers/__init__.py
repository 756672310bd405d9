"""Key stores: one module each, and each the only importer of its client library, so that only the one in use is loaded."""
