"""What one would use instead: other SQL, encryption in the application, and libraries from PyPI as their documentation says."""
