"""The site: its pages, notebooks and what builds them (`bash scripts/docs.sh`)."""
