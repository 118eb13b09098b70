"""Exported files beside their models: are they the same, how good and how fast are they?"""
