"""The settings of editors, which are flags; they load no package of numbers or pictures."""
