"""A moment -> triggers -> policy -> what is freed and charged; plugins are loaded and guarded here.

plugins    finds plugin files, registers their classes, refuses what does not fit the contract
reclaimer  one act of reclaim, and the accounts of all
"""
