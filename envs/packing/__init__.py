"""Packing: from the rows of an interval to the packs and steps that train them."""
