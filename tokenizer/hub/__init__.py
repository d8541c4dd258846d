"""Models as folders ready for the Hub: saving, strict loading, cards, and talk with the Hub."""
