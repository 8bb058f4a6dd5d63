"""``mixgym check-plugin``: what every plug-in has to hold, as checks that their authors run."""
