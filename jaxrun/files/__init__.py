"""Files and folders: whole or absent, replaced in one step, and within bounds where others wrote them."""
