"""What ``scripts/benchmark.py`` measures, and how: no product code, and nothing that the product imports."""
