"""The ground floor: files that are whole or not there, and errors that are the user's to mend."""
