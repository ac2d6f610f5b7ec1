"""A moment -> triggers -> policy -> what is freed and charged; plugins are loaded and guarded here.

plugins    finds plugin files, registers their classes, refuses what does not fit the contract
guard      plugins' code runs where it can be left behind
seats      the instances of policies and triggers, their tunables, and who is put aside
reclaimer  one act of reclaim, and the accounts of all
"""
